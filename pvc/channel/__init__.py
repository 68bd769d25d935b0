# SPDX-License-Identifier: Apache-2.0
"""The protocol of pvc-agent(7): frames, words, credit, trees. Bytes in, values out; no I/O."""
