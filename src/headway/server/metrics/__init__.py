"""What the server tells of itself to Prometheus.

server_metrics.py   the page
request_metrics.py  counted in this process, when messages of the engines come
per_engine.py       read from each engine, for each page: engine_numbers.py, engine_health.py, transfer_metrics.py,
                    kv_event_metrics.py
metric_names.py     how families are named and labelled
loop_monitor.py     how long the event loop is held up
"""
