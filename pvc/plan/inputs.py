# SPDX-License-Identifier: Apache-2.0
"""All that a node's plan follows from, kept so that the plan can be made again: to compare the node with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pvc.model.cluster import Placement
from pvc.model.host import Grants, JobFacts, NodeFacts
from pvc.model.request import Request
from pvc.plan.ethernet import Membership
from pvc.plan.node import NodePlan, Site, plan_memberships, plan_node
from pvc.plan.placement import place


@dataclass(frozen=True)
class Inputs:
    """The site is that of the set-up: what an administrator changes afterwards is for the clusters to come."""

    job: JobFacts
    request: Request
    site: Site
    facts: NodeFacts
    grants: Grants

    def placement(self) -> Placement:
        """Where all VMs run."""
        return place(self.job.nodes, self.job.cpus, self.request, self.job.parts)

    def memberships(self) -> tuple[Membership, ...]:
        """The cluster's networks, in their order."""
        return plan_memberships(self.request, self.site)

    def plan(self) -> NodePlan:
        """The plan that was carried out."""
        return plan_node(self.job, self.request, self.placement(), self.site, self.facts, self.grants)


def collect(job: JobFacts, request: Request, site: Site, facts: NodeFacts, grants: Grants) -> Inputs:
    """The inputs without the resource sets that the request does not name. Rules know of all networks of the site."""
    sets = {item.resource_set: site.resource_sets[item.resource_set] for item in request.sets}
    return Inputs(job, request, replace(site, resource_sets=sets), facts, grants)
