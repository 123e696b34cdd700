"""The API process's side of an engine: conversations to text, text to tokens and back, requests in progress."""
