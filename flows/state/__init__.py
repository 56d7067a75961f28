"""What is known of a job: its folder, storage and manifests."""
