"""What a layer, a tile, a trace or a task costs on a chip."""
