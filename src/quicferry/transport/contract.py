"""What quicferry needs of aioquic's private parts, checked when it is imported.

aioquic's public interface has no way to add a frame or to change a path, so this package reaches
into `QuicConnection`. Another version may have changed there; then it is better to refuse to start
than to lose connections.
"""

from __future__ import annotations

import aioquic
from aioquic.h3.connection import H3Connection, H3Stream
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicNetworkPath
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketNumberWindow, QuicPacketPacer, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender
from aioquic.tls import Context

from quicferry.protocol import QuicferryError

FRAME_HANDLERS = "_QuicConnection__frame_handlers"
"""The private dict from frame type to handler and epochs, as Python mangles its name."""

_CONNECTION = """
    _configuration _logger _on_new_connection_id_delivery _send_probe _state
    _abandon_path_validation _add_network_path _close_at _close_begin _close_end _close_event
    _close_pending _confirm_handshake _cryptos _datagrams_pending _events _find_preferred_address
    _flush_builder
    _consume_peer_cid _handle_crypto_frame
    _handle_path_response_frame _handle_stream_frame _write_reset_stream_frame
    _write_stop_sending_frame _handshake_complete _handshake_confirmed _host_cids _idle_timeout
    _initialize _is_client _local_active_connection_id_limit _local_initial_source_connection_id
    _loss _loss_at
    _max_datagram_size _network_paths _on_path_challenge_delivery _packet_number
    _parse_transport_parameters _payload_received _peer_cid _peer_cid_available _ping_pending
    _probe_pending _quic_logger _remote_max_data _remote_max_data_used _replenish_connection_ids
    _retire_connection_ids
    _retire_peer_cid _serialize_transport_parameters _spaces _spin_bit _streams _streams_queue
    _version _write_connection_limits _write_path_challenge_frame _write_path_response_frame
    _on_ack_delivery _write_ack_frame _write_new_connection_id_frame _write_ping_frame
    _write_stream_limits
"""
_RECOVERY = """
    _cc _detect_loss _get_loss_space _in_persistent_congestion _on_packets_lost _pacer _pto_count
    _rtt_first_sample_time _rtt_initial _rtt_initialized _rtt_latest _rtt_min _rtt_smoothed
    _rtt_variance _time_of_last_sent_ack_eliciting_packet reschedule_data spaces
"""
_PATH = """
    addr bytes_received bytes_sent is_validated local_challenge_sent local_challenges peer_cid
    remote_challenges validation_deadline
"""
_STATE = """
    _ack_eliciting_sent_since_receipt _crypto_streams _cryptos_initial _handshake_done_pending
    _host_cid_seq _log_key_updated _local_max_data _local_max_stream_data_bidi_local
    _local_max_stream_data_bidi_remote _local_max_stream_data_uni _local_max_streams_bidi
    _local_max_streams_uni _local_next_stream_id_bidi _local_next_stream_id_uni _pacing_at
    _peer_cid_sequence_numbers _peer_retire_prior_to _remote_active_connection_id_limit
    _remote_max_datagram_frame_size _remote_max_idle_timeout _remote_max_stream_data_bidi_local
    _remote_max_stream_data_bidi_remote _remote_max_stream_data_uni _remote_max_streams_bidi
    _remote_max_streams_uni _send_probing_frames _spin_highest_pn _streams_blocked_bidi
    _streams_blocked_pending _streams_blocked_uni _update_traffic_key
"""
_HTTP3 = """
    _blocked_streams _check_content_length _check_control_frame_type
    _check_request_or_push_frame_type _decode_headers _decoder _encoder _get_local_settings
    _handle_request_or_push_end _handle_request_or_push_frame _init_connection
    _receive_request_or_push_data
    _is_client _is_done _local_control_stream_id _local_decoder_stream_id _local_encoder_stream_id
    _max_push_id _max_table_capacity _next_push_id _peer_control_stream_id _peer_decoder_stream_id
    _peer_encoder_stream_id _quic _receive_stream_data _received_settings _sent_settings
    _settings_received _stream
"""
_HTTP3_STREAM = """
    buffer content_length expected_content_length frame_size frame_type headers_recv_state
    headers_send_state receiving_ended sending_ended session_id stream_id stream_type
"""
_SPACE = """
    ack_at ack_eliciting_in_flight ack_queue expected_packet_number largest_acked_packet
    discarded largest_received_packet largest_received_time loss_time received_packets sent_packets
"""
_SENDER = """
    _acked _acked_fin _buffer _buffer_fin _buffer_start _buffer_stop _pending _pending_eof
    _reset_error_code _stream_id buffer_is_empty highest_offset is_finished next_offset
    reset_pending
"""
_RECEIVER = """
    _buffer _buffer_start _final_size _ranges _stop_error_code highest_offset is_finished
    stop_pending
"""
_STREAM = """
    is_blocked max_stream_data_local max_stream_data_local_sent max_stream_data_remote receiver
    sender stream_id
"""


def check_contract() -> None:
    """Check that the installed aioquic has everything this package uses.

    Raises:
        QuicferryError: If it lacks something; the text names what, and the remedy.
    """
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    builder = QuicPacketBuilder(
        host_cid=b"", peer_cid=b"", version=1, is_client=True, max_datagram_size=1200
    )
    wanted: list[tuple[str, object, str]] = [
        ("QuicConnection", connection, f"{_CONNECTION} {_STATE} {FRAME_HANDLERS}"),
        ("QuicPacketRecovery", connection._loss, _RECOVERY),
        ("QuicPacketPacer", QuicPacketPacer(max_datagram_size=1200), "packet_time"),
        ("QuicPacketBuilder", builder, "_datagram_needs_padding"),
        ("QuicNetworkPath", QuicNetworkPath(("192.0.2.1", 4433)), _PATH),
        ("QuicPacketSpace", QuicPacketSpace(), _SPACE),
        ("H3Connection", H3Connection(connection), _HTTP3),
        ("H3Stream", H3Stream(0), _HTTP3_STREAM),
        ("QuicStreamSender", QuicStreamSender(stream_id=0, writable=True), _SENDER),
        ("QuicStreamReceiver", QuicStreamReceiver(stream_id=0, readable=True), _RECEIVER),
        ("QuicStream", QuicStream(), _STREAM),
        ("QuicPacketNumberWindow", QuicPacketNumberWindow(), "_lower _received"),
        ("CryptoPair", CryptoPair(), "_update_key_requested recv send"),
        ("CryptoContext", CryptoContext(), "cipher_suite decrypt_packet key_phase secret setup"),
        ("Limit", Limit(0, "", 0), "sent used value"),
        ("Context", Context(is_client=False), "_receive_buffer alpn_negotiated state"),
    ]
    missing = [
        f"{name}.{attribute}"
        for name, instance, attributes in wanted
        for attribute in attributes.split()
        if not hasattr(instance, attribute)
    ]
    if missing:
        raise QuicferryError(
            f"aioquic {aioquic.__version__} does not fit: it lacks {', '.join(missing)}; "
            "install aioquic 1.7.2"
        )
