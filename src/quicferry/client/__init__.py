"""Connecting to a server that may move, and HTTP/3 on such a connection."""

from .connection import connect
from .errors import GoingAway, RequestFailed, RequestRejected
from .exchange import Response, ResponseHead, StreamedResponse
from .head import request_head
from .http3 import HttpClient
from .names import DEFAULT_PORT

__all__ = [
    "DEFAULT_PORT",
    "GoingAway",
    "HttpClient",
    "RequestFailed",
    "RequestRejected",
    "Response",
    "ResponseHead",
    "StreamedResponse",
    "connect",
    "request_head",
]
