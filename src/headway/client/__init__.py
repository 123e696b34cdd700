"""The client side of the engine: from prompts and conversations to requests, and from tokens to answers."""
