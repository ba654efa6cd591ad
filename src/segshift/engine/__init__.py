"""The transfer of frames: batches through a generator, the gate, and the journal."""
