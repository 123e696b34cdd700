"""The engine: the writer's thread, and the ways in and out of it.

Owns every thread but the device's: the writer, the preprocess pool, the engine process's intake, output and control
threads. It knows no HTTP, touches no scheduling state (that is the manager's and the core's), and imports no torch.

    engine.py          Engine: manager, executor and writer put together
    writer.py          the thread that drives both             preprocess.py   the pool behind the writer

    process.py         the engine process: an engine between two sockets
    intake.py          messages of API processes               output.py       effects and the pulse, to API processes
    control_desk.py    calls that concern the whole engine     interpreter.py  how Python is set for all this
    simulated_engine.py   an engine without a model, for tests and benchmarks
"""
