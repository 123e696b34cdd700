"""The engine: the writer's thread, and the ways in and out of it.

Owns every thread but the device's: the writer, the preprocess pool, the engine process's intake, output and control
threads. It knows no HTTP, touches no scheduling state (that is the manager's and the core's), and imports no torch.

    engine.py       Engine: what any thread may ask                 loop.py        the writer
    preprocess.py   the pool behind the writer
    process.py      an engine between two sockets                   desk.py        what is asked of the whole of it
    wire.py         the messages of those sockets                   link.py        starting it, and talking to it
    client.py       the engine as an API process sees it            generation.py  one client request in progress
    token_processor.py, sequence.py, detokenizer.py   from token ids to answers
"""
