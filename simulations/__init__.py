"""Many hospitals on one machine: partition, run, progress, result, report."""
