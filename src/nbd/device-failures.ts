/**
 * What becomes of an error that a device raised: an answer to the client, and a line in the server's log.
 *
 * The two are kept apart. The error's own message may say where things are on this machine, and goes to the
 * log; the client gets a value, and a sentence made of the request and the kind of error alone.
 *
 * A device that fails tends to fail every request, and a client may send as many as it likes: so one error of
 * each code is logged for a connection.
 */

import { messageOf, systemCode } from '../base/index.ts';
import { COMMAND, NBD_ERROR } from './codec.ts';
import { nbdErrorOf, reasonOf } from './errno.ts';
import type { Failure } from './reply-writer.ts';

export interface FailedRequest {
  readonly command: number;
  readonly offsetBytes: number;
  readonly lengthBytes: number;
}

type LogFailure = (level: 'warning' | 'error', message: string, error: unknown) => void;

/** Codes are few; a device that makes them up must not fill the memory. */
const LOGGED_CODE_COUNT_MAX = 64;

const VERB_BY_COMMAND: ReadonlyMap<number, string> = new Map([
  [COMMAND.read, 'read'],
  [COMMAND.write, 'write'],
  [COMMAND.trim, 'trim'],
  [COMMAND.cache, 'cache'],
  [COMMAND.writeZeroes, 'zero'],
  [COMMAND.blockStatus, 'describe'],
]);

/** The failures of one connection. */
export class DeviceFailures {
  readonly #log: LogFailure;
  readonly #loggedCodes = new Set<string>();

  constructor(log: LogFailure) {
    this.#log = log;
  }

  /** Reports what a device threw, and says what its client is answered. */
  failureOf(request: FailedRequest, error: unknown): Failure {
    let level: 'warning' | 'error' = 'warning';
    const value = nbdErrorOf(error, () => (level = 'error'));
    const { command, offsetBytes, lengthBytes } = request;
    const code = systemCode(error) ?? '';
    // Fast zeroes that are refused are an answer, not a failure.
    if (
      value !== NBD_ERROR.ENOTSUP &&
      !this.#loggedCodes.has(code) &&
      this.#loggedCodes.size < LOGGED_CODE_COUNT_MAX
    ) {
      this.#loggedCodes.add(code);
      const range = `${offsetBytes}+${lengthBytes}`;
      this.#log(level, `Command ${command} on ${range} failed: ${messageOf(error)}`, error);
    }
    return { error: value, message: `Cannot ${described(request)}: ${reasonOf(error, value)}` };
  }
}

function described({ command, offsetBytes, lengthBytes }: FailedRequest): string {
  if (command === COMMAND.flush) return 'flush';
  if (command === COMMAND.resize) return `resize to ${offsetBytes} bytes`;
  return `${VERB_BY_COMMAND.get(command)} ${lengthBytes} bytes at offset ${offsetBytes}`;
}
