"""What experts and routers do: load, scores, co-activation, saturation, specialisation."""
