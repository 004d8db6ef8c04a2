"""Who may ask an endpoint, for what, and how often: keys, tokens, scopes, limits.

``gatekeeper`` decides over one request, ``access`` keeps the endpoint's own keys, ``tokens`` believes an
identity provider whose public keys ``keyset`` fetches, ``rates`` counts. What a request says beyond its
headers, which paths are open to all and how a refusal is written are not known here.
"""

from __future__ import annotations

from serve.guards.callers import Caller
from serve.guards.gatekeeper import Gatekeeper, GuardPlan, plan_guards

__all__ = ["Caller", "Gatekeeper", "GuardPlan", "plan_guards"]
