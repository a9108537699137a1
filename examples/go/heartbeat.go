// Keeps a session online until it is told to end (Ctrl-C, SIGTERM).
//
//	go run heartbeat.go SPACE USER SESSION [redis://127.0.0.1:6379]
//
// A heartbeat every third of the lease, so that two may be lost, and not exactly every third: a thousand
// clients that were started by one restart should not beat in the same moment. Each carries the
// metadata, which makes no event as long as it is the same, and is there again where the server lost the
// session. A server that is away is tried again soon: the lease runs on.
//
// PRESENCE_LEASE_MS is the lease (30000). PRESENCE_LINGER_MS (0) is for one that is restarted: where it is
// back with the same session in this time, nobody has noticed that it was gone. Needs go-redis (go.mod)
// and a server with the presence module.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const meta = `{"client":"heartbeat.go"}`

type session struct {
	client               *redis.Client
	space, user, session string
	leaseMs, lingerMs    int64
}

// do sends one command. A reply that comes after a third of the lease is no use.
func (s *session) do(words ...any) *redis.Cmd {
	third := time.Duration(s.leaseMs) * time.Millisecond / 3
	ctx, cancel := context.WithTimeout(context.Background(), third)
	defer cancel()
	return s.client.Do(ctx, words...)
}

// beat is true where the user was not online before this call.
func (s *session) beat() (bool, error) {
	came, err := s.do("PRESENCE.ONLINE", s.space, s.user, "SESSION", s.session,
		"META", meta, "PX", s.leaseMs).Int()
	return came == 1, err
}

// leave says that it goes: nobody has to wait for the end of the lease.
func (s *session) leave() error {
	return s.do("PRESENCE.OFFLINE", s.space, s.user, "SESSION", s.session,
		"LINGER", s.lingerMs).Err()
}

// pause is the time to the next heartbeat: 0.8 to 1 thirds of the lease.
func (s *session) pause(random *rand.Rand) time.Duration {
	return time.Duration(float64(s.leaseMs) / 3 * (0.8 + 0.2*random.Float64()) * float64(time.Millisecond))
}

// retry is the time to the next try where the server is down or still loading.
func (s *session) retry() time.Duration {
	if s.leaseMs > 5000 {
		return 500 * time.Millisecond
	}
	return time.Duration(s.leaseMs) * time.Millisecond / 10
}

// stay sends heartbeats until end is done.
func (s *session) stay(end context.Context) error {
	random := rand.New(rand.NewSource(time.Now().UnixNano())) // Go before 1.20 does not seed its own
	said := false
	for {
		pause := s.retry()
		came, err := s.beat()
		var reply redis.Error
		switch {
		case err == nil:
			pause = s.pause(random)
			if said && came {
				fmt.Println("online again")
			} else if !said {
				fmt.Println("online")
			}
			said = true
		case errors.As(err, &reply) && !redis.HasErrorPrefix(err, "LOADING"):
			return err // CLOSED, WRONGTYPE: it would be told the same again
		default:
			log.Printf("heartbeat: %v; trying again", err)
		}
		select {
		case <-time.After(pause):
		case <-end.Done():
			return nil
		}
	}
}

// setting is a number from the environment.
func setting(name string, otherwise int64) int64 {
	if ms, err := strconv.ParseInt(os.Getenv(name), 10, 64); err == nil {
		return ms
	}
	return otherwise
}

func main() {
	if len(os.Args) < 4 || len(os.Args) > 5 {
		log.Fatal("usage: heartbeat SPACE USER SESSION [redis://127.0.0.1:6379]")
	}
	url := "redis://127.0.0.1:6379"
	if len(os.Args) == 5 {
		url = os.Args[4]
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		log.Fatal(err)
	}
	options.MaxRetries = -1 // that is done in stay
	options.ContextTimeoutEnabled = true

	end, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &session{
		client:   redis.NewClient(options),
		space:    os.Args[1],
		user:     os.Args[2],
		session:  os.Args[3],
		leaseMs:  setting("PRESENCE_LEASE_MS", 30_000),
		lingerMs: setting("PRESENCE_LINGER_MS", 0),
	}
	if err := s.stay(end); err != nil {
		log.Fatal(err)
	}
	if err := s.leave(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("offline")
}
