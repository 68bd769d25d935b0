# SPDX-License-Identifier: Apache-2.0
"""What must be unique across jobs (etcd) and what must be undone (ledger)."""
