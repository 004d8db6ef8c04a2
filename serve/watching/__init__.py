"""What an endpoint tells about itself: metrics, logs, samples of its answers, traces, its state at a glance.

Nothing here decides about a request, and nothing here may delay or fail one: whatever cannot be written is
dropped and counted. It knows no transport and no engine; it is told numbers, names and tensors.

``dashboard.json`` is for Grafana, ``alerts.yaml`` for Prometheus; both lie beside these modules.
"""
