"""A picture turned by quarters."""
