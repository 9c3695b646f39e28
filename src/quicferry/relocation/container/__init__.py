"""The techniques that carry a container: cold, pre-copy, post-copy, hybrid."""
