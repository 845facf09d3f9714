"""What a run measures, and where it goes.

definitions  every metric, defined once
trackers     TensorBoard, wandb, MLflow, trackio
queries      PromQL of metrics
board        the Grafana board
alerts       Prometheus' alert rules
prometheus   a Prometheus configuration
"""
