"""One file per benchmark; its function `command` is a command of `headway bench`."""
