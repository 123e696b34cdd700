"""What the command line does that is more than a call: one command a file, and the options that they share.

    options.py    the engine's and the sampling options, declared once; loading a model by them
    generate.py   headway generate        chat.py      headway chat
    doctor.py     headway doctor          simtest.py   headway simtest
    accuracy.py   headway accuracy        lists.py     options of several values with commas between them

Imports anything of headway; nothing but the command line and the benchmarks imports it.
"""
