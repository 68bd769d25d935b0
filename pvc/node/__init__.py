# SPDX-License-Identifier: Apache-2.0
"""The root side: set-up, tear-down, reclaim, and the daemon that serves them."""
