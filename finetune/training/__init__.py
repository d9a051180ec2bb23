"""What trains: the tasks, their head starts and schedules, and the callbacks that watch them."""
