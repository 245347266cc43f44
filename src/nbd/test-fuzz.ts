/**
 * The mutation fuzzer over recorded sessions: one seed is one run.
 *
 * A run takes a recorded session (or several at once), mutates what one side said, and plays it to the other
 * side of this room, machines alone or over sockets. It fails with what went wrong; a run that takes for ever,
 * an unhandled rejection and growing memory are for the caller to notice, who knows the process.
 *
 * What a run does is drawn from its seed alone. What a server over sockets does also depends on timing and, as
 * servers live on, on earlier runs; a failure there may need the seeds before it.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SeededRandom } from '../base/index.ts';
import { fuzzReader, ownClientOf, PlayingServer } from './test-fuzz-client.ts';
import { FuzzedServers, fuzzMachines } from './test-fuzz-server.ts';
import { mutate } from './test-mutations.ts';
import { bytesFrom, readSessions, type Session } from './test-sessions.ts';

export type FuzzTarget = 'server machines' | 'server sockets' | 'client machines' | 'client sockets';

export class Fuzzer {
  readonly #directory: string;
  readonly #servers: FuzzedServers;
  readonly #playing: PlayingServer;
  readonly #sessions: readonly Session[] = readSessions();
  readonly #ownSessions = this.#sessions.filter((session) => ownClientOf(session) !== undefined);

  private constructor(directory: string, servers: FuzzedServers, playing: PlayingServer) {
    this.#directory = directory;
    this.#servers = servers;
    this.#playing = playing;
  }

  static async open(): Promise<Fuzzer> {
    const directory = mkdtempSync(join(tmpdir(), 'nbd-fuzz-'));
    return new Fuzzer(directory, await FuzzedServers.open(directory), await PlayingServer.open(directory));
  }

  /** Ends the servers, which must have nothing left to do. */
  async close(): Promise<void> {
    await this.#servers.close();
    await this.#playing.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** @returns what was run. Throws what it found. */
  async run(seed: number): Promise<FuzzTarget> {
    const random = new SeededRandom(seed);
    const draw = random.below(32);
    if (draw < 20) {
      await fuzzMachines(random, this.#clientStream(random));
      return 'server machines';
    }
    if (draw < 24) {
      const count = random.pick([1, 1, 2, 4]);
      await this.#servers.play(
        random,
        Array.from({ length: count }, () => this.#clientStream(random)),
      );
      return 'server sockets';
    }
    const session = random.pick(this.#ownSessions);
    const other = bytesFrom(random.pick(this.#sessions), 'server');
    const stream = mutate(random, bytesFrom(session, 'server'), other);
    if (draw < 30) {
      fuzzReader(random, session, stream);
      return 'client machines';
    }
    await this.#playing.play(random, session, stream);
    return 'client sockets';
  }

  #clientStream(random: SeededRandom): Buffer {
    const [session, other] = [random.pick(this.#sessions), random.pick(this.#sessions)];
    return mutate(random, bytesFrom(session, 'client'), bytesFrom(other, 'client'));
  }
}
