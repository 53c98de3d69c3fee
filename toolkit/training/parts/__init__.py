"""What a recipe chooses by name: losses, schedules, augmentation, pretrained parts."""
