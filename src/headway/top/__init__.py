"""`headway top`: a running server in numbers, live in the terminal.

A `Page` is what /metrics said at one time; a `Window` is what happened between two pages; a `Screen` shows it.
"""
