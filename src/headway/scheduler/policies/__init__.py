"""The rules that can be chosen, one object each."""
