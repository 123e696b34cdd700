"""The engine: the thread of the writer, and the ways in and out of it.

This folder owns every thread of an engine except those of the device: the writer, the preprocess pool, and the intake,
output and control threads of the engine process. It knows no HTTP, touches no scheduling state (the manager and the
core own it), and imports no torch.

    engine.py          Engine: manager, executor and writer put together
    writer.py          the thread that drives both             preprocess.py   the pool behind the writer

    process.py         the engine process: an engine between two sockets
    intake.py          messages of API processes               output.py       effects and the pulse, to API processes
    kv_events.py    publishes what the prefix cache holds      findable_blocks.py   which blocks, by digest
    cache_teller.py    says the same to API processes
    control_desk.py    calls that concern the whole engine     interpreter.py  Python's settings in the engine process
    simulated_engine.py   an engine without a model, for tests and benchmarks
"""
