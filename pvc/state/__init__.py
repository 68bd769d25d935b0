"""What must be unique across jobs (etcd) and what must be undone (ledger)."""
