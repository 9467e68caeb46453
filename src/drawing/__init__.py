"""What people look at: objects on pictures, and curves."""
