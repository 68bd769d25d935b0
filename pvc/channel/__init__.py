"""The protocol of pvc-agent(7): frames, words, credit, trees. Bytes in, values out; no I/O."""
