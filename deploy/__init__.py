"""What brings TMS to a cluster: the chart, the images, the alerts and dashboards."""
