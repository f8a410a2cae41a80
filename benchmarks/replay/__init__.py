"""Speed of the replay, compared with other libraries' replay buffers."""
