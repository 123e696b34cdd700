"""The pages for browsers. They load nothing: no script, no font, nothing from another host."""
