"""The API process's side of an engine, and tokens to text."""
