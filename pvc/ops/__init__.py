# SPDX-License-Identifier: Apache-2.0
"""What the user's commands do: resolve, launch, find and talk to clusters."""
