"""The commands that are more than one call, one per file, and the options that they share.

    options.py    engine and sampling options, declared once; loads the model that they name
    generate.py   headway generate        chat.py      headway chat
    doctor.py     headway doctor          simtest.py   headway simtest
    accuracy.py   headway accuracy        lists.py     options of several values with commas between them

Imports anything of headway; nothing but the command line and the benchmarks imports it.
"""
