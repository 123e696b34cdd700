"""The routes, but for those of the Responses and Messages APIs, which are in folders of their own.

api.py           the application, and the routes for clients
about.py         what the server says of itself     render.py   what a request would bring to the engine
admin.py         the routes for operators
not_served.py    paths that clients of other servers know, refused by name
"""
