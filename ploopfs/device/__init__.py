"""What makes a stack of deltas a block device: the queue with its gate, standby, statistics, replacing the top."""
