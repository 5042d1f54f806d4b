package lockbox

import (
	"context"
	"sync"
)

// FireDue fires what is due until nothing is.
func (s *Service) FireDue(ctx context.Context) error {
	for {
		var firing sync.WaitGroup
		pause, err := s.fireDue(ctx, &firing)
		firing.Wait()
		if err != nil || pause > 0 {
			return err
		}
	}
}
