"""How many replicas a deployment should have: as many as its requests in work need.

Ray Serve counts the requests that pass its own wrapper; nearly all go to the replicas' own listeners and
gRPC ports, which each replica counts itself and reports to Ray. Ray applies the limits and the delays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

#: What a replica reports its requests in work as.
IN_FLIGHT = "in_flight"


def by_requests(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Say how many replicas the requests in work need; Ray's controller asks.

    Args:
        context: What Ray knows of the deployment. Its own count has the requests that wait for a first
            replica; those that a replica got through Ray are in both counts, so that the larger one holds.

    Returns:
        The number wanted, before limits and delays, and no state.
    """
    reported = (context.aggregated_metrics or {}).get(IN_FLIGHT, {})
    requests = max(float(context.total_num_requests), float(sum(reported.values())))
    assert context.config is not None
    return requests / context.config.get_target_ongoing_requests(), {}
