/**
 * An NBD export as a block device.
 *
 * Requests that exceed the server's limits are cut into pieces, which run one after another. What the server
 * does not offer is done another way, where there is one:
 *
 * - FUA: a flush after the write;
 * - zeroes: writes of zeroes;
 * - fast zeroes: nothing. The server says for each request whether they are; a later piece that is refused leaves
 *   the earlier ones zeroed;
 * - flush: nothing. A server that does not offer it says that it keeps nothing back (as Linux assumes);
 * - trim: NBD does not say what a trimmed range reads as, and our port does. So a trim is sent as zeroes that
 *   may become a hole, and only offered where the server has both.
 *
 * Extents come from the metadata context `base:allocation`, where the client has selected it, which
 * `openNbdDevice` does; otherwise everything is data.
 *
 * What it does not do: reconnecting. After a lost connection every call fails with `connection-lost`; the caller
 * opens a new device.
 */

import { assert, GIB, LIMITS, MIB } from '../base/index.ts';
import {
  assertRange,
  assertZeroOptions,
  type BlockDevice,
  type DeviceCapabilities,
  DeviceError,
  type DeviceExtent,
  type WriteOptions,
  type ZeroOptions,
} from '../device/index.ts';
import { NbdClient, type NbdConnectOptions } from './client.ts';
import { NbdClientError } from './client-error.ts';
import { ALLOCATION_FLAG, type StatusExtent } from './codec-chunks.ts';
import { formatNbdUri, type NbdAddress } from './uri.ts';

/** Zeroes and trims carry no payload; pieces of this size keep one request from taking very long. */
const ZERO_PIECE_BYTES = 128 * MIB;

const ALLOCATION = 'base:allocation';
/** Asked for at once; without extended headers a range must fit into 32 bits. */
const STATUS_RANGE_BYTES_MAX = 2 * GIB;

export class NbdDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly blockSizeBytes: number;
  readonly capabilities: DeviceCapabilities;
  readonly description: string;
  readonly client: NbdClient;
  readonly #payloadBytesMax: number;

  /** @throws {NbdClientError} export-unsuitable */
  constructor(client: NbdClient) {
    const info = client.exportInfo;
    const address = formatNbdUri(client.address);
    this.client = client;
    this.sizeBytes = info.sizeBytes;
    this.blockSizeBytes = Math.max(info.minimumBlockSizeBytes, LIMITS.blockSizeBytesMin);
    this.description = `nbd ${address}`;
    this.capabilities = {
      readOnly: info.readOnly,
      trim: info.canTrim && info.canWriteZeroes,
      extents: client.contexts.includes(ALLOCATION),
      fastZero: !info.readOnly && info.canWriteZeroes && client.canFastZero,
    };
    const payloadBytesMax = Math.min(info.maximumPayloadBytes, LIMITS.nbdPayloadBytesMax);
    this.#payloadBytesMax = payloadBytesMax - (payloadBytesMax % this.blockSizeBytes);
    if (info.sizeBytes % this.blockSizeBytes !== 0 || this.#payloadBytesMax === 0) {
      const message =
        `Export ${address} of ${info.sizeBytes} bytes in payloads of ${info.maximumPayloadBytes} ` +
        `cannot be a device of whole ${this.blockSizeBytes}-byte blocks`;
      throw new NbdClientError('export-unsuitable', message, { address, sizeBytes: info.sizeBytes });
    }
  }

  read(target: Buffer, offsetBytes: number): Promise<void> {
    assertRange(this, offsetBytes, target.length);
    return this.#inPieces(target.length, this.#payloadBytesMax, (at, lengthBytes) =>
      this.client.read(target.subarray(at, at + lengthBytes), offsetBytes + at),
    );
  }

  write(source: Buffer, offsetBytes: number, options: WriteOptions = {}): Promise<void> {
    this.#assertWritable(offsetBytes, source.length);
    return this.#change(options, (fua) =>
      this.#inPieces(source.length, this.#payloadBytesMax, (at, lengthBytes) =>
        this.client.write(source.subarray(at, at + lengthBytes), offsetBytes + at, { fua }),
      ),
    );
  }

  writeZeroes(offsetBytes: number, lengthBytes: number, options: ZeroOptions = {}): Promise<void> {
    this.#assertWritable(offsetBytes, lengthBytes);
    assertZeroOptions(this, options);
    const { mayTrim = true, fast = false } = options;
    if (!this.client.exportInfo.canWriteZeroes) {
      return this.#change(options, (fua) => this.#writeZeroBytes(offsetBytes, lengthBytes, fua));
    }
    return this.#change(options, (fua) =>
      this.#inPieces(lengthBytes, ZERO_PIECE_BYTES, (at, pieceBytes) =>
        this.client.writeZeroes(offsetBytes + at, pieceBytes, { fua, mayTrim, fast }),
      ).catch((error: unknown) => {
        throw fast ? this.#asNotFast(error) : error;
      }),
    );
  }

  trim(offsetBytes: number, lengthBytes: number, options: WriteOptions = {}): Promise<void> {
    assert(this.capabilities.trim, `${this.description} cannot trim`);
    return this.writeZeroes(offsetBytes, lengthBytes, { ...options, mayTrim: true });
  }

  flush(): Promise<void> {
    return this.client.exportInfo.canFlush ? this.client.flush() : Promise.resolve();
  }

  async extents(offsetBytes: number, lengthBytes: number): Promise<readonly DeviceExtent[]> {
    assertRange(this, offsetBytes, lengthBytes);
    if (!this.capabilities.extents) return [{ offsetBytes, lengthBytes, hole: false, zero: false }];
    const runs = new BlockRuns(offsetBytes, offsetBytes + lengthBytes, this.blockSizeBytes);
    const options = { contexts: [ALLOCATION] };
    while (runs.atBytes < runs.endBytes) {
      const wantedBytes = Math.min(runs.endBytes - runs.atBytes, STATUS_RANGE_BYTES_MAX);
      const statuses = await this.client.blockStatus(runs.atBytes, wantedBytes, options);
      runs.add(statuses.get(ALLOCATION) ?? []);
    }
    return runs.extents;
  }

  close(): Promise<void> {
    return this.client.disconnect();
  }

  /** Runs a change with the server's FUA, or with a flush behind it. */
  async #change(options: WriteOptions, change: (fua: boolean) => Promise<void>): Promise<void> {
    const fua = options.fua === true;
    const hasFua = this.client.exportInfo.canFua;
    await change(fua && hasFua);
    if (fua && !hasFua) await this.flush();
  }

  /** The server's refusal of fast zeroes in the port's words; any other error as it is. */
  #asNotFast(error: unknown): unknown {
    if (!(error instanceof NbdClientError) || error.code !== 'not-supported') return error;
    const details = { device: this.description };
    return new DeviceError('not-fast', error.message, details, { cause: error });
  }

  #writeZeroBytes(offsetBytes: number, lengthBytes: number, fua: boolean): Promise<void> {
    const pieceBytesMax = Math.min(this.#payloadBytesMax, Math.max(MIB, this.blockSizeBytes));
    const zeroes = Buffer.alloc(Math.min(pieceBytesMax, lengthBytes));
    return this.#inPieces(lengthBytes, pieceBytesMax, (at, pieceBytes) =>
      this.client.write(zeroes.subarray(0, pieceBytes), offsetBytes + at, { fua }),
    );
  }

  async #inPieces(
    lengthBytes: number,
    pieceBytesMax: number,
    run: (at: number, pieceBytes: number) => Promise<void>,
  ): Promise<void> {
    if (lengthBytes <= pieceBytesMax) return run(0, lengthBytes);
    for (let at = 0; at < lengthBytes; at += pieceBytesMax) {
      await run(at, Math.min(pieceBytesMax, lengthBytes - at));
    }
    return undefined;
  }

  #assertWritable(offsetBytes: number, lengthBytes: number): void {
    assert(!this.capabilities.readOnly, `${this.description} is read-only`);
    assertRange(this, offsetBytes, lengthBytes);
  }
}

/**
 * Connects to an export and makes a device of it. Closing the device disconnects.
 *
 * @throws {NbdClientError} export-unsuitable, and all that `NbdClient.connect` throws
 * @throws {NbdUriError} uri-invalid
 */
export async function openNbdDevice(
  target: string | NbdAddress,
  options: NbdConnectOptions = {},
): Promise<NbdDevice> {
  const contexts = [...(options.contexts ?? []), ALLOCATION];
  const client = await NbdClient.connect(target, { ...options, contexts });
  try {
    return new NbdDevice(client);
  } catch (error) {
    await client.disconnect();
    throw error;
  }
}

/**
 * A server's extents as whole blocks of the device, neighbours of one kind made one. Servers may tell runs
 * apart within our blocks; a block that is not of one kind throughout is data.
 */
class BlockRuns {
  readonly extents: DeviceExtent[] = [];
  atBytes: number;
  readonly endBytes: number;
  readonly #blockSizeBytes: number;

  constructor(offsetBytes: number, endBytes: number, blockSizeBytes: number) {
    this.atBytes = offsetBytes;
    this.endBytes = endBytes;
    this.#blockSizeBytes = blockSizeBytes;
  }

  /** Extents from `atBytes` on. Always goes on by a block at least. */
  add(statuses: readonly StatusExtent[]): void {
    const block = this.#blockSizeBytes;
    let from = this.atBytes;
    for (const { lengthBytes, flags } of statuses) {
      const to = Math.min(from + lengthBytes, this.endBytes);
      const wholeFrom = Math.ceil(from / block) * block;
      const wholeTo = Math.floor(to / block) * block;
      if (wholeTo > wholeFrom) {
        if (wholeFrom > this.atBytes) this.#push(wholeFrom, 0);
        this.#push(wholeTo, flags);
      }
      from = to;
    }
    // The rest of a block whose beginning came last, or nothing at all, which would never end.
    if (from > this.atBytes || statuses.length === 0) {
      this.#push(Math.min(Math.ceil(Math.max(from, this.atBytes + 1) / block) * block, this.endBytes), 0);
    }
  }

  #push(to: number, flags: number): void {
    const from = this.atBytes;
    const hole = (flags & ALLOCATION_FLAG.hole) !== 0;
    const zero = (flags & ALLOCATION_FLAG.zero) !== 0;
    const last = this.extents.at(-1);
    if (last?.hole === hole && last.zero === zero) {
      this.extents[this.extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + to - from };
    } else {
      this.extents.push({ offsetBytes: from, lengthBytes: to - from, hole, zero });
    }
    this.atBytes = to;
  }
}
