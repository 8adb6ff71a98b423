//go:build !unix && !windows

package medianode

import "time"

// processTime is not known here: the node has no limit of its processors.
func processTime() time.Duration { return 0 }
