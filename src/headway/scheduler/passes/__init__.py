"""How the next step is decided, in the order of a pass: displacement, growth, chunks, admissions, steps."""
