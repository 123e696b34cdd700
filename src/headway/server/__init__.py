"""The HTTP server: OpenAI's API over one engine or several (`Engines`).

This folder owns everything HTTP: routes, request and response bodies, errors as clients see them, metrics, and the life
of the server process. It reaches engines only by `Engines`, and never touches scheduling state.

    serve.py         the process: port, engine, signals, shutdown     settings.py   what a user chooses
    api.py           the routes for clients     admin.py        the routes for operators
    service.py       shared by all routes
    body.py, json_census.py, body_budget.py, unknown_fields.py   how a body is read
    middleware.py    the layers around the routes: envelope.py, CORS, key_check.py (keys.py, doors.py, tls.py)
    connections.py, loop_monitor.py   bounds on connections; how the loop is
    prefill_engines.py   the engines that compute prompts for a decode engine
    protocol.py      request bodies             responses.py    response bodies
    prompt_bodies.py from a body to prompts     render.py       what a body would bring to the engine
    generate.py      from a pending request to a response, whole or streamed
    completions.py, chat.py   the form of answers in each of the two APIs
    errors.py        errors as HTTP
    metrics.py       the page for Prometheus: request_metrics.py is counted here, per_engine.py is read of each engine
                     (engine_numbers.py, engine_health.py, transfer_metrics.py, kv_event_metrics.py)
"""
