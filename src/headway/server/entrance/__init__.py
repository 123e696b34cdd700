"""The way in: what every request passes before its route, and bounds on what clients send.

connections.py   how many are open, how long the head of a request may take     tls.py   their certificates
middleware.py    the layers around the routes: envelope.py, CORS, key_check.py
doors.py         who may come in, as an operator says it: keys.py
body_budget.py, json_census.py   how much of bodies is in memory, and of how many parts
"""
