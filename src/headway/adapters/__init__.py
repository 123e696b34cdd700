"""Faces for guests: other engines and their users. Each may import managers and the core; nothing imports it."""
