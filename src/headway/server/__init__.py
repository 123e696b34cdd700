"""The HTTP server: OpenAI's API over one engine or several (`Engines`).

This folder owns everything HTTP: routes, request and response bodies, errors as clients see them, metrics, and the life
of the server process. It reaches engines only by `Engines`, and never touches scheduling state.

    serve.py         the process: port, engine, signals, shutdown     settings.py   what a user chooses
                     banner.py, activity.py   what it says at its start, and while it is busy
    routes/          the application, and its routes     pages/   for browsers     openapi.py   what /openapi.json says
    messages_api/, responses_api/   the APIs whose bodies become chat completions
    batch_files.py   requests in a file, answered by the same routes

A request passes these, from its connection to its answer:

    entrance/        the layers around the routes, and bounds on what clients send
    service.py       shared by all routes
    body.py          reads a body     prompt_bodies.py   from a body to prompts
    fields/          what bodies may ask for
    submission.py    hands prompts to the engine     prefill_engines.py   the engines that compute prompts for this one
    answers/         from the engine's outputs to a response
    errors.py        errors as HTTP: error_codes.py
    metrics/         what is told of all this to Prometheus
"""
