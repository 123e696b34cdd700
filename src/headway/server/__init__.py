"""The HTTP face: OpenAI's API over an `EngineClient`.

Owns everything HTTP: routes, request and response bodies, errors as clients see them, metrics, the life of the server
process. It knows the engine only as the client does (submit, events, close) and never touches scheduling state.

    serve.py         the process: port, engine, signals, shutdown
    api.py           the routes                 admin.py        those for whoever runs the server
    service.py       what the routes share
    protocol.py      what clients may send        responses.py   what they get
    generate.py      from a generation to a response, whole or streamed
    completions.py, chat.py   how answers look in each of the two APIs
    errors.py        errors as HTTP               metrics.py     numbers for Prometheus
"""
