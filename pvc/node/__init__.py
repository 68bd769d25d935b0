"""The root side: set-up, tear-down, reclaim, and the daemon that serves them."""
