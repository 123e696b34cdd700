"""The commands that are more than one call, one per file, and the options that they share.

    options.py    engine and sampling options, declared once; loads the model that they name
    generate.py   headway generate        chat.py      headway chat
    doctor.py     headway doctor          simtest.py   headway simtest

Imports anything of headway; nothing but the command line imports it.
"""
