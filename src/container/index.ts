export { type ContainerArea, DeviceArea, MemoryArea } from './area.ts';
export { type ContainerEntry, DrainQueue } from './drain-queue.ts';
export { IntermediateContainer, type Slot } from './intermediate-container.ts';
